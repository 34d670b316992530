"""The training of defences and classifiers: loop, state, inputs."""
