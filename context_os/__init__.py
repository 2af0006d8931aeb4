"""Context-OS: what a team knows about its code, kept with lineage and handed to an AI reviewer."""

__version__ = "0.1.0"
