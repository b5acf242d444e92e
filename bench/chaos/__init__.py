"""Real processes in bad weather: agents and a server that are killed, over links that are cut, slowed and sliced."""
