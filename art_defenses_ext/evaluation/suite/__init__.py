"""The attack suites, their plans, and the models that their attacks see."""
