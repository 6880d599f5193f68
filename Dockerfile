# syntax=docker/dockerfile:1
# The trainer: PID 1 of every pod. It contains no weights or secrets and does not run as root.
# Every RUN line is a make target that `make setup` runs too, so that CI tests it without docker.
#
#   docker build -t cogvx-train:0.1.0 .
#   docker build --build-arg TORCH_INDEX=<index with the torch build you want> ...

# The full image, not -slim, in both stages: Triton and inductor need a C compiler and Python's
# headers at run time.
FROM python:3.11.14-bookworm AS dependencies
ARG TORCH_INDEX=""
WORKDIR /src
COPY Makefile pyproject.toml ./
COPY requirements requirements
# One layer each, so that torch is downloaded again only when its version changes.
RUN make venv VENV=/opt/cogvx
# hadolint ignore=DL3059
RUN make install-torch VENV=/opt/cogvx TORCH_INDEX="${TORCH_INDEX}"
# hadolint ignore=DL3059
RUN make install-dependencies VENV=/opt/cogvx
WORKDIR /scratch

FROM python:3.11.14-bookworm AS runtime
LABEL org.opencontainers.image.title="cogvx-train" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=dependencies /opt/cogvx /opt/cogvx
# The layers below are small: a new version of the program does not transfer torch again.
WORKDIR /src
COPY Makefile pyproject.toml README.md LICENSE ./
COPY app app
RUN make install-app VENV=/opt/cogvx
# In a pod a volume is mounted here; without one the folder must still be writable.
COPY --from=dependencies --chown=10001:10001 /scratch /scratch
ENV PATH=/opt/cogvx/bin:$PATH \
    HOME=/scratch/home \
    USER=cogvx \
    XDG_CACHE_HOME=/scratch/cache \
    TRITON_CACHE_DIR=/scratch/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/scratch/cache/inductor \
    TORCH_EXTENSIONS_DIR=/scratch/cache/torch_extensions \
    HF_HOME=/scratch/cache/huggingface \
    WANDB_DIR=/scratch/wandb \
    WANDB_CACHE_DIR=/scratch/cache/wandb \
    WANDB_DATA_DIR=/scratch/cache/wandb-data \
    MPLCONFIGDIR=/scratch/cache/matplotlib \
    PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /scratch
ENTRYPOINT ["cogvx", "launch"]
