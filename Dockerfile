# renewd as one static binary in an otherwise empty image, with CA certificates, time zones and a
# user without rights.
# Build with `make image`, which passes the version.

FROM --platform=$BUILDPLATFORM golang:1.27.3-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .
ARG VERSION=dev
ARG TARGETOS
ARG TARGETARCH
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -buildvcs=false -tags timetzdata -ldflags "-s -w -X main.version=${VERSION}" -o /out/renewd ./cmd/renewd
# What the final image needs beside the binary. /data gets the owner that a fresh volume takes over.
RUN mkdir -p /out/root/etc/ssl/certs /out/data \
    && cp /etc/ssl/certs/ca-certificates.crt /out/root/etc/ssl/certs/ \
    && echo 'nonroot:x:65532:65532:nonroot:/data:/sbin/nologin' > /out/root/etc/passwd \
    && echo 'nonroot:x:65532:' > /out/root/etc/group

FROM scratch
ARG VERSION=dev
LABEL org.opencontainers.image.title="renewd" \
      org.opencontainers.image.description="Keeps the OAuth tokens and profiles of signed-in users fresh, driven by NATS JetStream" \
      org.opencontainers.image.source="https://github.com/renewd/renewd" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}"
COPY --from=build /out/root/ /
COPY --from=build --chown=65532:65532 /out/data /data
COPY --from=build /out/renewd /usr/local/bin/renewd
ENV RENEWD_DATA_DIR=/data \
    RENEWD_HTTP_ADDR=0.0.0.0:7460
USER 65532:65532
WORKDIR /data
VOLUME /data
EXPOSE 7460
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["/usr/local/bin/renewd", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/renewd"]
CMD ["serve"]
