"""The engine: one forward pass of a model over the new tokens of many streams, on a slab of cached ones.

A server verifies with it, and an agent that has several streams drafts with it.

```
Segment, ...  ->  layouts: Packed | Padded  ->  the model, or lean in its place  ->  logits where they are wanted
                           |                       |
                       grouping      attention  ->  slab
```

On a GPU the model's own code runs, recorded where that is faster (`graphs`). On a CPU a model like Llama is run by
`lean`, after a `trial` has shown that the logits are the same.

A model that is shared by several ranks runs on `parallel.LeadingEngine`, which the others follow.
"""

from __future__ import annotations

from goodspeed.engine.engine import Engine, Layout
from goodspeed.engine.layouts import Segment
from goodspeed.engine.support import reach

__all__ = ["Engine", "Layout", "Segment", "reach"]
