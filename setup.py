"""What pyproject.toml cannot say: experiments/ is installed as sspo_jax/experiments/, and under no other name."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["sspo_jax", "sspo_jax.*"]), "sspo_jax.experiments"],
    package_dir={"sspo_jax.experiments": "experiments"},
)
