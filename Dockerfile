# The image holds everything: a box without internet needs it alone (docs/install.md).
FROM python:3.12-slim-bookworm

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    NO_ALBUMENTATIONS_UPDATE=1 \
    HF_HUB_OFFLINE=1 \
    DO_NOT_TRACK=true \
    HAIRLINE_HOST=0.0.0.0 \
    HAIRLINE_STORAGE_DIR=/var/lib/hairline

# On a GPU, normalization is kernels that Triton builds when a network first meets a size.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/hairline
# Dependencies change seldom and weigh gigabytes; the sources above them rebuild in seconds.
COPY pyproject.toml constraints.txt README.md ./
COPY norm norm
COPY data data
COPY models models
COPY training training
COPY service service
RUN pip install --no-cache-dir -c constraints.txt .

RUN useradd --system --create-home --home-dir /var/lib/hairline hairline
USER hairline
VOLUME /var/lib/hairline
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["hairline", "serve"]
