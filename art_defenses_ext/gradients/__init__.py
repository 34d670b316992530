"""Backward passes for attackers: gradient modes, surrogates, replaced activations, checkpointed steps."""
