"""All packaging metadata; `pyproject.toml` holds the build system and the tools' tables only."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "ra_blip/__init__.py").read_text(encoding="utf-8"), re.MULTILINE)

setup(
    name="ra-blip",
    version=VERSION[1] if VERSION else "",
    description="RA-BLIP: multimodal retrieval-augmented vision-language training and question answering",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="BSD-3-Clause",
    license_files=["LICENSE"],
    packages=find_packages(include=["ra_blip", "ra_blip.*"]),
    package_data={"ra_blip": ["py.typed"], "ra_blip.report": ["*.css", "*.html"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.6",  # a range: the build (CPU, CUDA, ROCm) is the user's choice, see run_scripts/environment.sh
        "transformers>=5.15,<6",  # scaled-dot-product attention in T5 and in the Q-Formers
        "safetensors>=0.8",
        "numpy>=1.26",
        "pillow>=12.2",  # older ones have known decompression bombs; 12.x still takes Python 3.10
        "omegaconf>=2.4,<3",
        "tqdm>=4.66",
        "webdataset>=1.0,<2",  # our shards are its tars; it reads them beside us
        "networkx>=3",  # required by torch as well: the matching of MultimodalQA's F1
        "lemminflect>=0.2.3",  # 0.9 MB: dictionary forms for WebQA's QA-Acc
    ],
    extras_require={
        # cpu and gpu own the same `faiss` folder: install one of them, never both.
        "cpu": ["faiss-cpu>=1.12"],
        "gpu": ["faiss-gpu>=1.14.3; sys_platform == 'linux' and platform_machine == 'x86_64'"],
        "deepspeed": ["deepspeed>=0.19,<0.20"],
        "fast": ["simplejpeg>=1.8"],  # decode quality `fastest`
        "track": ["wandb>=0.28", "tensorboard>=2.20"],
        "peft": ["peft>=0.21"],
        "browser": ["playwright>=1.50"],  # reverse image search on a page; Chromium: `playwright install chromium`
        # What LAVIS imports, with nothing that asks for torchvision; LAVIS itself: see ra_blip/integrations/lavis.py.
        "lavis": [
            *("pandas", "iopath", "decord", "opencv-python-headless", "fairscale", "einops", "spacy"),
            "pycocoevalcap>=1.2",
        ],
        "dev": [
            *("pytest>=8", "pytest-timeout>=2.3", "ruff>=0.14", "mypy>=1.18", "types-PyYAML", "types-tqdm"),
            *("peft>=0.21", "simplejpeg>=1.8"),  # small optional packages, so that their tests run
        ],
    },
    entry_points={"console_scripts": ["ra-blip=ra_blip.__main__:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
