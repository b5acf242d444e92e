"""Frames that nobody in their right mind would send, and who has to bear them: the decoders, and a link's both ends."""
