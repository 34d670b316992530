"""What an attacker may differentiate: gradient modes, surrogates, replaced activations."""
