"""Who runs where and when, as pure functions: quota, topology, fragmentation and preemption decided together.

No clock, no I/O, no threads, no Ray: time comes with the events, and the same events give the same decisions to the
last byte. Quantities are integers: thousandths of a cpu or device, MiB, milliseconds.
"""
