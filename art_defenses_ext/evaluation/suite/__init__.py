"""Which attacks run where, and what the attacker is given."""
