"""The verification engine: one forward pass of the target over everybody's new tokens, on a slab of cached ones.

```
Segment, ...  ->  layouts: Packed | Padded  ->  the model, untouched  ->  logits where they are wanted
                           |                       |
                       grouping      attention  ->  slab
```
"""

from __future__ import annotations

from goodspeed_server.engine.engine import Engine, Layout
from goodspeed_server.engine.layouts import Segment

__all__ = ["Engine", "Layout", "Segment"]
