"""Training: packed prompt trees, the loss, the cached reference, FSDP2 and the learner."""
