"""Emulated edges: the real server, real agents and real models on one machine, every agent at its own box's pace.

It ships, unlike `bench/`, since `goodspeed bench` is made of it; it imports agent and server, and neither imports it.
"""
