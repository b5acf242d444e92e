"""Emulated edges: the real server, real agents and real models on one machine, every agent at its own box's pace."""
