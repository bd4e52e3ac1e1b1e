"""First floor: one task protocol and one loop, distribution, checkpoints, schedules, the loader and mixtures.

Read in this order: task.py (what a system brings), loop.py (what is done with it), order.py and loader.py
(which samples, and how they arrive), optimizer.py and schedule.py, distributed.py, checkpoint.py.
"""
