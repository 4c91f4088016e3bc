"""What joins adp_async to other frameworks: one module or package for each, public names only.

Each has an extra named after its framework: ``pip install 'adp-async[mlflow]'``.
"""
