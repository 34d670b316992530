"""Training of defences and classifiers: loop, state, inputs."""
