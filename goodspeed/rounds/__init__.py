"""Who is in the next batch, and when it closes: state machines, events in, decisions out.

Behind the barrier a stream is either *drafting* (its agent owes a draft) or *ready* (its draft is here, or its budget
is 0); in rolling rounds everybody is ready, whatever their agents are doing.
"""

from goodspeed.rounds.barrier import Barrier
from goodspeed.rounds.interface import Prospect, Rounds
from goodspeed.rounds.prompts import share_out
from goodspeed.rounds.rolling import Rolling

__all__ = ["Barrier", "Prospect", "Rolling", "Rounds", "share_out"]
