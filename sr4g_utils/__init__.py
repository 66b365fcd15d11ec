"""SR4G: does a text-to-image model put things where you say? (arXiv 2403.00587)"""

__version__ = "0.1.0"
