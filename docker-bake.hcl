# docker buildx bake [TARGET…]; `docker buildx bake --list=targets` says what there is. Defaults stand in the Dockerfile:
# a variable that is null leaves its ARG alone. docs/containers.md has examples.

variable "BASE_IMAGE" {
  default     = null
  description = "Another Debian 12 image to start from"
}
variable "MODEL_BASE" {
  default     = null
  description = "Base model of the `model` target"
}
variable "TRAIN_OPTIONS" {
  default     = null
  description = "Arguments of `train` in the `model` target"
}
variable "CUDA_ARCHITECTURES" {
  default     = null
  description = "GPUs that llama.cpp is compiled for in the CUDA images, as CMake writes them: 89-real"
}
variable "CACHE_NAME" {
  default     = null
  description = "Name of the cache mounts; another name starts without them"
}
variable "WHEELS" {
  default     = null
  description = "Folder with wheels that pip's index does not offer"
}
variable "CA_BUNDLE" {
  default     = null
  description = "Certificate bundle of a proxy, used during the build and never stored"
}
variable "PIP_CONF" {
  default     = null
  description = "pip.conf used during the build and never stored"
}
variable "CACHE_TYPE" {
  default     = null
  description = "Where layers are kept between builds: gha on GitHub's runners"
}
variable "REGISTRY" {
  default     = null
  description = "Prefix of the image names, with its slash"
}
variable "REVISION" {
  default     = null
  description = "Commit that is built, for the image's label"
}
variable "INPUTS" {
  default     = null
  description = "Digest of what the image is made of, by which the launcher knows it again"
}
variable "SOURCE_DATE_EPOCH" {
  default     = 1753056000
  description = "Time written on every file: one for all builds, so that equal files are equal layers"
}

group "default" {
  description = "The image that trains on the CPU"
  targets     = ["runtime-cpu"]
}
group "check" {
  description = "Linters and quick tests, in the image of the devcontainer"
  targets     = ["lint", "test"]
}
group "ci" {
  description = "Everything the continuous build makes without a GPU"
  targets     = ["lint", "runtime-cpu", "model"]
}

function "layers" {
  params = [scope]
  result = CACHE_TYPE == null ? [] : ["type=${CACHE_TYPE},scope=${scope}"]
}
function "all_layers" {
  params = [scope]
  result = CACHE_TYPE == null ? [] : ["type=${CACHE_TYPE},scope=${scope},mode=max"]
}

target "_common" {
  context    = "."
  dockerfile = "Dockerfile"
  args = {
    BASE_IMAGE         = BASE_IMAGE
    CACHE              = CACHE_NAME
    CUDA_ARCHITECTURES = CUDA_ARCHITECTURES
    SOURCE_DATE_EPOCH  = SOURCE_DATE_EPOCH
  }
  contexts = WHEELS == null ? {} : { wheels = WHEELS }
  secret = concat(
    CA_BUNDLE == null ? [] : ["id=ca,src=${CA_BUNDLE}"],
    PIP_CONF == null ? [] : ["id=pip,src=${PIP_CONF}"],
  )
}

target "_image" {
  inherits = ["_common"]
  attest   = ["type=provenance,mode=max", "type=sbom"]
  labels = {
    "org.opencontainers.image.title"       = "dm-forge"
    "org.opencontainers.image.description" = "Markdown Dungeons & Dragons scenarios in, a proven Dungeon Master GGUF out"
    "org.opencontainers.image.licenses"    = "Apache-2.0"
    "org.opencontainers.image.revision"    = REVISION
    "dm-forge.inputs"                      = INPUTS
  }
}

target "runtime" {
  name        = "runtime-${variant}"
  matrix      = { variant = ["cpu", "cuda"] }
  description = "What trains on ${upper(variant)}: no compiler, no root"
  inherits    = ["_image"]
  target      = "runtime"
  args        = { VARIANT = variant }
  tags        = ["${REGISTRY == null ? "" : REGISTRY}dm-forge:runtime-${variant}"]
  cache-from  = layers("runtime-${variant}")
  cache-to    = all_layers("runtime-${variant}")
}

target "release-cpu" {
  description = "The CPU image for x86-64 and Arm: needs a builder that has or emulates both"
  inherits    = ["runtime-cpu"]
  platforms   = ["linux/amd64", "linux/arm64"]
}

target "dev" {
  name        = "dev-${variant}"
  matrix      = { variant = ["cpu", "cuda"] }
  description = "The devcontainer for ${upper(variant)}: compilers, linters, debugger, Node.js"
  inherits    = ["_image"]
  target      = "dev"
  args        = { VARIANT = variant }
  tags        = ["${REGISTRY == null ? "" : REGISTRY}dm-forge:dev-${variant}"]
  cache-from  = layers("dev-${variant}")
  cache-to    = all_layers("dev-${variant}")
}

target "model" {
  description = "Train inside the build, without network, into assets/models"
  inherits    = ["_common"]
  target      = "model"
  args = {
    MODEL_BASE    = MODEL_BASE
    TRAIN_OPTIONS = TRAIN_OPTIONS
  }
  output     = ["type=local,dest=assets/models"]
  cache-from = layers("runtime-cpu")
}

target "model-cuda" {
  description  = "The same on a GPU given to the build: bake --allow device model-cuda"
  inherits     = ["model"]
  dockerfile   = "docker/Dockerfile.gpu"
  contexts     = { data-cuda = "target:data-cuda" }
  target       = "model"
  cache-from   = layers("data-cuda")
  entitlements = ["device"]
}

target "data-cuda" {
  description = "The CUDA image with the base model and the checked data in it"
  inherits    = ["_common"]
  target      = "data"
  args = {
    VARIANT    = "cuda"
    MODEL_BASE = MODEL_BASE
  }
  cache-from = layers("data-cuda")
  cache-to   = all_layers("data-cuda")
}

target "lint" {
  description = "Every linter, without network"
  inherits    = ["_common"]
  target      = "lint"
  output      = ["type=cacheonly"]
}

target "test" {
  description = "The quick tests, without network"
  inherits    = ["_common"]
  target      = "test"
  output      = ["type=cacheonly"]
}
