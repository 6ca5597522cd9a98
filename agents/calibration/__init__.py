"""Whether an agent's belief is one: probes, calibration, and what the policy does with it."""
