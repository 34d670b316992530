"""Defences that change the network itself: faces of ART's ``art.defences.transformer``."""
