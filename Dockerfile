# base → llama-cpp → python-deps → runtime → dev | data → train → export → model
# Build through docker-bake.hcl, which names the variants; docs/containers.md says what each stage is for.
ARG BASE_IMAGE=debian:bookworm-slim@sha256:4724b8cc51e33e398f0e2e15e18d5ec2851ff0c2280647e1310bc1642182655d
# cpu or cuda
ARG VARIANT=cpu
# What the CUDA 13 wheels ask of a machine: NVIDIA's oldest driver and oldest generation of GPUs.
ARG CUDA_DRIVER=580
ARG CUDA_CAPABILITY=7.5
# The model trained inside the build.
ARG MODEL_BASE=smollm2-135m
ARG TRAIN_OPTIONS="--preset quick"
# GPUs that the CUDA variant's llama.cpp is compiled for, as CMake writes them ("89-real"); empty: all that ggml knows.
ARG CUDA_ARCHITECTURES=""
# Another value leaves every cache mount behind but that of Debian's signed packages: for comparing builds that share nothing.
ARG CACHE=shared

# A site gives wheels of its own, or another base image, as the named contexts `wheels` and `origin`.
FROM scratch AS wheels
FROM ${BASE_IMAGE} AS origin

FROM origin AS base
ENV LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
# The name of a cache would stand in the image's history, and so in its digest: this stage's are the same for every build.
# hadolint ignore=DL3008
RUN --mount=type=cache,id=apt-base,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,id=apt-lists-base,target=/var/lib/apt,sharing=locked \
    --mount=type=tmpfs,target=/var/log <<'END'
set -eu
rm -f /etc/apt/apt.conf.d/docker-clean # packages are kept in the cache mount, not in the image
apt-get update
apt-get install -y --no-install-recommends -o APT::Keep-Downloaded-Packages=true \
    ca-certificates libgomp1 libstdc++6 python3 python3-venv
SOURCE_DATE_EPOCH=0 useradd --uid 1000 --user-group --create-home --no-log-init forge
find / -xdev -name __pycache__ -type d -prune -exec rm -rf {} +
rm -rf /var/cache/ldconfig/* /var/cache/debconf/*-old /var/lib/dpkg/*-old /etc/*-
END

FROM base AS toolchain
ARG CACHE
# hadolint ignore=DL3008
RUN --mount=type=cache,id=apt-${CACHE},target=/var/cache/apt,sharing=locked \
    --mount=type=cache,id=apt-lists-${CACHE},target=/var/lib/apt,sharing=locked \
    --mount=type=tmpfs,target=/var/log \
    apt-get update && apt-get install -y --no-install-recommends -o APT::Keep-Downloaded-Packages=true ccache g++

FROM toolchain AS toolchain-cpu

# NVIDIA's compiler and the libraries it links, from wheels of the locks, in the folder where the image will have the same
# libraries. The links are the names that nvcc and CMake look for.
FROM toolchain AS toolchain-cuda
ARG CACHE
ARG CUDA_ARCHITECTURES
ENV CUDA_PATH=/opt/venv/lib/python3.11/site-packages/nvidia/cu13 CMAKE_CUDA_COMPILER_LAUNCHER=ccache \
    DM_FORGE_CUDA_ARCHITECTURES=${CUDA_ARCHITECTURES}
ENV PATH=$CUDA_PATH/bin:$PATH
# hadolint ignore=DL3003
RUN --mount=type=cache,id=pip-${CACHE},target=/root/.cache/pip \
    --mount=type=secret,id=ca --mount=type=secret,id=pip \
    --mount=type=bind,from=wheels,target=/run/wheels \
    --mount=type=bind,source=docker/with-site,target=/src/docker/with-site \
    --mount=type=bind,source=docker/part-of-lock,target=/src/docker/part-of-lock \
    --mount=type=bind,source=requirements/cuda.txt,target=/src/cuda.txt \
    --mount=type=bind,source=requirements/nvcc.txt,target=/src/nvcc.txt \
    --mount=type=tmpfs,target=/tmp <<'END'
set -eu
python3 -m venv /opt/venv
/src/docker/part-of-lock /src/cuda.txt nvidia-cublas nvidia-cuda-runtime >/tmp/libraries.txt
/src/docker/with-site /opt/venv/bin/python -m pip install --quiet --no-compile --no-deps --require-hashes \
    --requirement /tmp/libraries.txt --requirement /src/nvcc.txt
cd "$CUDA_PATH"
ln -s lib lib64
cd lib
for name in cublas cublasLt cudart; do ln -s "lib$name.so.13" "lib$name.so"; done
END

FROM toolchain-${VARIANT} AS llama-cpp
ARG CACHE
ENV DM_FORGE_LLAMA_PORTABLE=1 CCACHE_DIR=/cache/ccache CCACHE_BASEDIR=/cache CCACHE_NOHASHDIR=1 \
    CMAKE_C_COMPILER_LAUNCHER=ccache CMAKE_CXX_COMPILER_LAUNCHER=ccache
# Only what the build of llama.cpp reads: an edit anywhere else leaves this stage as it is.
# hadolint ignore=DL3003
RUN --mount=type=cache,id=llama-${CACHE},target=/cache \
    --mount=type=cache,id=pip-${CACHE},target=/root/.cache/pip \
    --mount=type=secret,id=ca --mount=type=secret,id=pip \
    --mount=type=bind,from=wheels,target=/run/wheels \
    --mount=type=bind,source=docker/with-site,target=/src/docker/with-site \
    --mount=type=bind,source=docker/part-of-lock,target=/src/docker/part-of-lock \
    --mount=type=bind,source=docker/build_llama_cpp.py,target=/src/build_llama_cpp.py \
    --mount=type=bind,source=requirements/cpu.txt,target=/src/cpu.txt \
    --mount=type=bind,source=pipeline/__init__.py,target=/src/pipeline/__init__.py \
    --mount=type=bind,source=pipeline/artifacts.py,target=/src/pipeline/artifacts.py \
    --mount=type=bind,source=pipeline/errors.py,target=/src/pipeline/errors.py \
    --mount=type=bind,source=pipeline/files.py,target=/src/pipeline/files.py \
    --mount=type=bind,source=pipeline/progress.py,target=/src/pipeline/progress.py \
    --mount=type=bind,source=pipeline/environment/__init__.py,target=/src/pipeline/environment/__init__.py \
    --mount=type=bind,source=pipeline/environment/hardware.py,target=/src/pipeline/environment/hardware.py \
    --mount=type=bind,source=pipeline/environment/llama_build.py,target=/src/pipeline/environment/llama_build.py \
    --mount=type=bind,source=pipeline/environment/llama_cpp.py,target=/src/pipeline/environment/llama_cpp.py \
    --mount=type=bind,source=pipeline/environment/llama_source.py,target=/src/pipeline/environment/llama_source.py \
    --mount=type=bind,source=pipeline/environment/native,target=/src/pipeline/environment/native <<'END'
set -eu
python3 -m venv /tmp/venv
/src/docker/part-of-lock /src/cpu.txt cmake ninja rich markdown-it-py mdurl pygments >/tmp/tools.txt
/src/docker/with-site /tmp/venv/bin/python -m pip install --quiet --no-deps --require-hashes --requirement /tmp/tools.txt
cd /src
/src/docker/with-site /tmp/venv/bin/python build_llama_cpp.py /cache /opt/llama.cpp
rm -rf /tmp/*
[ -z "${CUDA_PATH:-}" ] || ln -s "$CUDA_PATH"/lib/libcu*.so.13 /opt/llama.cpp/bin # where the backend looks for them
END

FROM base AS python-deps
ARG CACHE
ARG VARIANT
RUN --mount=type=cache,id=pip-${CACHE},target=/root/.cache/pip \
    --mount=type=secret,id=ca --mount=type=secret,id=pip \
    --mount=type=bind,from=wheels,target=/run/wheels \
    --mount=type=bind,source=docker/with-site,target=/src/docker/with-site \
    --mount=type=bind,source=docker/part-of-lock,target=/src/docker/part-of-lock \
    --mount=type=bind,source=docker/install-lock,target=/src/docker/install-lock \
    --mount=type=bind,source=requirements/cpu.txt,target=/src/requirements/cpu.txt \
    --mount=type=bind,source=requirements/cuda.txt,target=/src/requirements/cuda.txt \
    /src/docker/with-site /src/docker/install-lock /opt/venv /src/requirements "${VARIANT}"

FROM base AS runtime
ARG VARIANT
ARG CUDA_DRIVER
ARG CUDA_CAPABILITY
COPY --from=python-deps /opt/venv /opt/venv
COPY --from=llama-cpp /opt/llama.cpp /opt/llama.cpp
# The NVIDIA_ variables ask NVIDIA's container toolkit for the driver's libraries. Bytecode is written to /tmp, where a
# read-only root has its one writable folder of its own.
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp USER=forge PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX=/tmp/pycache \
    DM_FORGE_LLAMA=/opt/llama.cpp DM_FORGE_DEVICE=${VARIANT} DM_FORGE_CUDA_DRIVER=${CUDA_DRIVER} \
    DM_FORGE_CUDA_CAPABILITY=${CUDA_CAPABILITY} NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /dm-forge
RUN install -d -o forge -g forge artifacts artifacts/cache assets assets/models
COPY LICENSE README.md ./
COPY requirements requirements
COPY configs configs
COPY training_data training_data
COPY docker/entrypoint docker/entrypoint
COPY pipeline pipeline
USER 1000
ENTRYPOINT ["docker/entrypoint"]
CMD ["--help"]

FROM runtime AS dev
USER 0
ARG CACHE
# hadolint ignore=DL3008
RUN --mount=type=cache,id=apt-${CACHE},target=/var/cache/apt,sharing=locked \
    --mount=type=cache,id=apt-lists-${CACHE},target=/var/lib/apt,sharing=locked \
    --mount=type=tmpfs,target=/var/log <<'END'
set -eu
apt-get update
apt-get install -y --no-install-recommends -o APT::Keep-Downloaded-Packages=true \
    ccache g++ git less openssh-client procps
rm -rf /var/cache/ldconfig/* /var/cache/debconf/*-old /var/lib/dpkg/*-old /etc/*-
END

# The markers say to the launcher that the locks are installed: its verbs use this environment as it is.
# hadolint ignore=DL3003
RUN --mount=type=cache,id=pip-${CACHE},target=/root/.cache/pip \
    --mount=type=secret,id=ca --mount=type=secret,id=pip \
    --mount=type=bind,from=wheels,target=/run/wheels \
    --mount=type=bind,source=docker,target=/src/docker \
    --mount=type=bind,source=requirements,target=/src/requirements \
    --mount=type=tmpfs,target=/tmp <<'END'
set -eu
cd /src/requirements
/src/docker/part-of-lock cpu.txt cmake ninja >/tmp/tools.txt
PYTHONDONTWRITEBYTECODE=1 /src/docker/with-site python -m pip install --quiet --no-compile --no-deps --require-hashes \
    --requirement /tmp/tools.txt --requirement dev.txt --requirement container.txt
for lock in cpu cuda dev; do
  sha256sum "$lock.txt" >/tmp/sum
  read -r sum _ </tmp/sum
  echo "$sum" >"/opt/venv/.dm-forge-$lock"
done
END

ENV HOME=/home/forge DM_FORGE_VENV=/opt/venv
WORKDIR /workspace
RUN install -d -o forge -g forge /home/forge/.cache . artifacts artifacts/cache
USER 1000
ENTRYPOINT []
CMD ["bash"]

FROM dev AS lint
WORKDIR /dm-forge
COPY . .
RUN --network=none --mount=type=tmpfs,target=/tmp \
    ruff check --no-cache . && ruff format --no-cache --check . && mypy --cache-dir /tmp/mypy

FROM runtime AS data
ARG CACHE
ARG MODEL_BASE
ENV DM_FORGE_DEVICE=cpu
RUN --mount=type=cache,id=wheels-${CACHE},target=/dm-forge/artifacts/cache/wheels,uid=1000,gid=1000 \
    --mount=type=secret,id=ca,uid=1000 --mount=type=secret,id=pip,uid=1000 \
    --mount=type=bind,from=wheels,target=/run/wheels \
    --mount=type=bind,source=docker/with-site,target=/run/with-site \
    --mount=type=tmpfs,target=/tmp \
    /run/with-site python -m pipeline setup --base "${MODEL_BASE}" && python -m pipeline data check

FROM dev AS test
WORKDIR /dm-forge
COPY --chown=1000:1000 . .
COPY --from=data --chown=1000:1000 /dm-forge/artifacts/cache artifacts/cache
RUN --network=none --mount=type=tmpfs,target=/tmp pytest -n auto --dist loadfile

# From here on nothing comes from outside: every input is in a layer.
FROM data AS train
ARG MODEL_BASE
ARG TRAIN_OPTIONS
RUN --network=none --mount=type=tmpfs,target=/tmp \
    eval "python -m pipeline train --base ${MODEL_BASE} ${TRAIN_OPTIONS} --train-only"

FROM train AS export
ARG MODEL_BASE
ARG TRAIN_OPTIONS
RUN --network=none --mount=type=tmpfs,target=/tmp eval "python -m pipeline train --base ${MODEL_BASE} ${TRAIN_OPTIONS}"

FROM scratch AS model
COPY --from=export /dm-forge/assets/models/ /
