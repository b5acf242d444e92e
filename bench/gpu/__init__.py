"""What a round of verification costs on one big GPU, beside the least that the hardware would need for it.

`python -m bench.gpu [--json FILE]`: under nine minutes, no network. `python -m bench.gpu --device cpu --shape tiny`
tries the command itself, and says nothing of a GPU.
"""
