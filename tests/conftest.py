"""What all tests share: Hypothesis draws the same examples at every run, and as many as a test says."""

from hypothesis import HealthCheck, settings

from samebits.proofs.modes.workers import wait_idly

wait_idly()  # one process for each core, each with threads of its own

settings.register_profile(
    "samebits", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("samebits")
