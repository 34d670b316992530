"""Detectors: faces of ART's ``art.defences.detector.evasion``."""
