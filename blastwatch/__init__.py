"""What training, serving and monitoring share: images, the model package, the registry, settings and errors.

Research software, not a medical device.
"""

__version__ = "0.1.0"

DISCLAIMER = "Research software, not a medical device."
