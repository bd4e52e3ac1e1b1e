"""First floor: one task protocol and one loop, evaluation, distribution, checkpoints, schedules, loader, mixtures.

Read in this order: task.py (what a system implements), loop.py (what trains it), accumulation.py (one step), order.py
and loader.py (which samples, and how they are loaded), optimizer.py and schedule.py, distributed.py, checkpoint.py.
"""
