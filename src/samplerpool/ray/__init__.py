"""Ray: a pool's workers on the machines of a cluster, and a sampler for Ray Data.

What is here is imported, and Ray with it, by the processes that need it alone.
"""
