"""What a run needs on machines that are not here: parameters, memory, work, time and cost, from a config alone."""
