"""``--rank auto`` with data: candidates fitted to samples, timed, and chosen together within a budget.

parts -> options of each layer -> what each does to the network's output -> one choice for all -> recovery
"""
