"""How to run it, before spending: FLOPs, bytes, seconds, watts, price, and the search over them. Pure."""
