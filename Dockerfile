# syntax=docker/dockerfile:1

# What every container of the pipeline runs; `make image` builds it.
#   VARIANT=cpu    (default)
#   VARIANT=gpu    with CUDA and cuDNN as wheels; the driver comes from the machine
# The target `serving` is TensorFlow Serving instead; compose.yaml starts it.
ARG VARIANT=cpu

FROM apache/beam_python3.10_sdk:2.67.0 AS beam

FROM tensorflow/serving:2.16.1 AS serving
# What is served is mounted at /models/umx-pro: the push destination, with its numbered folders.
ENV MODEL_NAME=umx-pro
USER 65534
EXPOSE 8500 8501
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["/bin/bash", "-c", \
    "exec 3<>/dev/tcp/127.0.0.1/8501; printf 'GET /v1/models/umx-pro HTTP/1.0\\r\\n\\r\\n' >&3; grep -q AVAILABLE <&3"]

FROM python:3.10-slim-bookworm@sha256:68d914ec641a0b69267ce65184d000a2bc3a9ee2590ab702b82250ab2385735a AS pipeline
ARG VARIANT
# Packages first: they change least.
COPY requirements-${VARIANT}.txt /tmp/requirements.txt
RUN pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore --require-hashes \
    --requirement /tmp/requirements.txt

# With this, the same image is what Dataflow's and Flink's workers run (--sdk_container_image).
COPY --from=beam /opt/apache/beam /opt/apache/beam

WORKDIR /umx-pro
# TFX imports artifact types by name: system.HTML is one of them.
COPY system.py ./
COPY data_schema data_schema
COPY umx_model umx_model
COPY components components
COPY pipeline pipeline
# Compiled once, as the user who runs them may not write here.
RUN python -m compileall -q . && useradd --create-home --uid 1000 umx-pro
USER umx-pro

# GCS_READ_CACHE_BLOCK_SIZE_MB: fetch what is asked for, not 64 MB around it, for libraries that come before umx_model.
# LD_LIBRARY_PATH: the machine's driver as Vertex AI and GKE mount it; and CUDA's wheels, which TensorFlow 2.16 does not
# find by itself (https://github.com/tensorflow/tensorflow/issues/63362). XLA_FLAGS: ptxas and libdevice among them.
ENV PYTHONPATH=/umx-pro \
    PYTHONUNBUFFERED=1 \
    TF_CPP_MIN_LOG_LEVEL=3 \
    GCS_READ_CACHE_BLOCK_SIZE_MB=0 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA=/usr/local/lib/python3.10/site-packages/nvidia
ENV LD_LIBRARY_PATH=/usr/local/nvidia/lib64:$NVIDIA/cublas/lib:$NVIDIA/cuda_cupti/lib:$NVIDIA/cuda_nvrtc/lib:$NVIDIA/cuda_runtime/lib:$NVIDIA/cudnn/lib:$NVIDIA/cufft/lib:$NVIDIA/curand/lib:$NVIDIA/cusolver/lib:$NVIDIA/cusparse/lib:$NVIDIA/nccl/lib:$NVIDIA/nvjitlink/lib \
    XLA_FLAGS=--xla_gpu_cuda_data_dir=$NVIDIA/cuda_nvcc \
    PATH=$PATH:$NVIDIA/cuda_nvcc/bin

# For Beam's workers. The compiled pipeline starts components with a command of its own.
ENTRYPOINT ["/opt/apache/beam/boot"]
