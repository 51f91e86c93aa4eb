"""The paper's experiments: which runs each one needs, what is measured on them, and which claims it decides."""
