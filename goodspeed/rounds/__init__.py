"""Who is in the next batch, and when it closes: state machines, events in, decisions out.

Streams that are part of the rounds are either *drafting* (their agent owes a draft) or *ready* (their draft is here,
or their budget is 0 and the server decodes them without waiting for anybody).
"""

from goodspeed.rounds.barrier import Barrier
from goodspeed.rounds.interface import Rounds
from goodspeed.rounds.rolling import Rolling

__all__ = ["Barrier", "Rolling", "Rounds"]
