"""What pyproject.toml cannot say: where experiments and studies are installed, under no other name.

experiments/ becomes sspo_jax/experiments/, studies/ becomes sspo_jax/experiments/studies/.
"""

from setuptools import find_namespace_packages, setup

setup(
    packages=[
        *find_namespace_packages(include=["sspo_jax", "sspo_jax.*"]),
        *("sspo_jax.experiments", "sspo_jax.experiments.studies"),
    ],
    package_dir={"sspo_jax.experiments": "experiments", "sspo_jax.experiments.studies": "studies"},
)
