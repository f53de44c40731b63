"""Generative recommendation in JAX.

Import wings by name (`from jaxrec.tokenization import ResidualKMeans`); the top level stays empty
so that `import jaxrec` costs nothing.
"""

__version__ = "0.1.0"
