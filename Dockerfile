# xwam-ft on NVIDIA's CUDA runtime. Built from a checkout:
#   docker build -t xwam-ft .
#   docker run --rm --gpus all --shm-size=8g -v "$PWD":/work -v hf:/home/robot/.cache/huggingface xwam-ft doctor
# torch brings its own CUDA libraries; of the host only the driver is used, and it must be one for this CUDA or later.
ARG CUDA=13.0.2
FROM ubuntu:24.04 AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Ubuntu's archive keeps no old versions to pin.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY . /source
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir 'build>=1.2,<2' \
    && /opt/build/bin/python -m build --wheel --outdir /wheels /source

FROM nvidia/cuda:${CUDA}-runtime-ubuntu24.04
# Mesa's EGL renders the simulator where the driver does not.
# Ubuntu's archive keeps no old versions to pin.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv libegl1 libgl1-mesa-dri \
    && rm -rf /var/lib/apt/lists/*
# Extras that the image has: read recordings of ROS, serve robots, a base in 8 or 4 bits.
ARG EXTRAS=mcap,serve,quant
RUN --mount=from=build,source=/wheels,target=/wheels \
    python3 -m venv /opt/xwam-ft \
    && /opt/xwam-ft/bin/pip install --no-cache-dir "$(echo /wheels/xwam_ft-*.whl)[${EXTRAS}]"
# No secret: how many threads tokenizers have.
# hadolint ignore=DL3064
ENV PATH=/opt/xwam-ft/bin:$PATH TOKENIZERS_PARALLELISM=false MUJOCO_GL=egl
RUN useradd --create-home --uid 1010 robot && mkdir -p /work /home/robot/.cache/huggingface \
    && chown -R robot:robot /work /home/robot/.cache
USER 1010
WORKDIR /work
EXPOSE 8000
ENTRYPOINT ["xwam-ft"]
CMD ["--help"]
