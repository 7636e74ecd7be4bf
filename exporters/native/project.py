"""Makefile and CMakeLists.txt of a native artifact: a shared and a static library, and the example."""

from __future__ import annotations

from collections.abc import Sequence

from csr_deploy.runtimes.native.build import COMPILE_FLAGS, LINK_FLAGS, probe_source, variant_macros
from csr_deploy.runtimes.native.platforms import PLATFORMS, Variant
from csr_deploy.runtimes.native.sources import ENTRY, KERNEL_NAMES, is_kernel


def makefile(sources: Sequence[str], name: str, prefix: str) -> str:
    """Makefile, for the compiler's own platform or, with CROSS, for another one.

    Args:
        sources: Names of the .c files.
        name: Of the network.
        prefix: Of the generated names.
    """
    kernels = [s for s in sources if is_kernel(s)]
    others = [s for s in sources if not is_kernel(s) and s != ENTRY]
    tables = []
    for platform in PLATFORMS:
        key = platform.key
        tables.append(f"VARIANTS_{key} := {' '.join(v.name for v in platform.variants)}")
        for macro, variant in zip(variant_macros(platform.variants), platform.variants, strict=True):
            tables.append(f"FLAGS_{key}_{variant.name} := {' '.join(variant.flags)}")
            if variant.check:
                tables.append(f"MACRO_{key}_{variant.name} := {macro}")
            if variant.probe:
                tables.append(f"PROBE_{key}_{variant.name} := {probe_source(variant).strip()}")
    return f"""# {name}: `make` on the board, or `make CROSS=aarch64-linux-gnu-` for it,
# builds build/lib{prefix}.so, build/lib{prefix}.a and build/example.
CROSS ?=
ifeq ($(origin CC),default)
CC := $(CROSS)gcc
endif
ifeq ($(origin AR),default)
AR := $(CROSS)ar
endif
CFLAGS ?= {" ".join(COMPILE_FLAGS)}
ARCH := $(firstword $(subst -, ,$(shell $(CC) -dumpmachine)))

# Kernels are compiled once for each variant of the processor; loading the library chooses among them.
{chr(10).join(tables)}
# Variants that the compiler or its assembler does not know are left out.
probe = $(CC) $(FLAGS_$(ARCH)_$(1)) -x c -c - -o /dev/null 2>/dev/null && echo $(1)
known = $(if $(PROBE_$(ARCH)_$(1)),$(shell echo '$(PROBE_$(ARCH)_$(1))' | $(probe)),$(1))
VARIANTS := $(foreach v,$(or $(VARIANTS_$(ARCH)),base),$(call known,$(v)))
MACROS := $(foreach v,$(VARIANTS),$(MACRO_$(ARCH)_$(v)))
KERNELS := {" ".join(kernels)}
MODEL := {" ".join(others)}
OBJECTS := $(MODEL:%.c=build/%.o) build/{ENTRY.removesuffix(".c")}.o \\
  $(foreach v,$(VARIANTS),$(KERNELS:%.c=build/$(v)/%.o))
HEADERS := $(wildcard src/*.h)
NAMES := -include src/{KERNEL_NAMES}

.PHONY: all clean
all: build/lib{prefix}.so build/lib{prefix}.a build/example

$(MODEL:%.c=build/%.o): build/%.o: src/%.c $(HEADERS)
\t@mkdir -p $(@D)
\t$(CC) $(FLAGS_$(ARCH)_base) $(CFLAGS) -DCSR_CALLS $(NAMES) -c $< -o $@

build/{ENTRY.removesuffix(".c")}.o: src/{ENTRY} $(HEADERS)
\t@mkdir -p $(@D)
\t$(CC) $(FLAGS_$(ARCH)_base) $(CFLAGS) -DCSR_TABLES $(MACROS) $(NAMES) -c $< -o $@

define variant
build/$(1)/%.o: src/%.c $(HEADERS)
\t@mkdir -p $$(@D)
\t$$(CC) $$(FLAGS_$$(ARCH)_$(1)) $$(CFLAGS) -DCSR_VARIANT=$(1) $$(NAMES) -c $$< -o $$@
endef
$(foreach v,$(VARIANTS),$(eval $(call variant,$(v))))

build/lib{prefix}.so: $(OBJECTS)
\t$(CC) {" ".join(LINK_FLAGS)} -Wl,-soname,lib{prefix}.so -o $@ $^

build/lib{prefix}.a: $(OBJECTS)
\trm -f $@
\t$(AR) rcs $@ $^

build/example: examples/classify/main.c build/lib{prefix}.a
\t$(CC) -pthread $(CFLAGS) -Isrc $^ -o $@

clean:
\trm -rf build
"""


def cmake(sources: Sequence[str], target: str, prefix: str) -> str:
    """CMakeLists.txt: a library that other projects add with add_subdirectory.

    Args:
        sources: Names of the .c files.
        target: Of CMake.
        prefix: Of the generated names.
    """
    kernels = "\n".join(f"  src/{s}" for s in sources if is_kernel(s))
    others = " ".join(f"src/{s}" for s in sources if not is_kernel(s) and s != ENTRY)
    choices = []
    for number, platform in enumerate(PLATFORMS):
        machines = "|".join(sorted(platform.machines))
        choices.append(f'{"elseif" if number else "if"}(processor MATCHES "^({machines})$")')
        choices += [f"  set(flags_{v.name} {' '.join(v.flags)})" for v in platform.variants]
        choices.append("  set(variants)")
        choices.append("  set(macros)")
        for macro, variant in zip(variant_macros(platform.variants), platform.variants, strict=True):
            choices += _cmake_variant(variant, macro.removeprefix("-D"))
    return f"""cmake_minimum_required(VERSION 3.13)
project({target} C)
# {target} is a static library; with -DBUILD_SHARED_LIBS=ON a shared one.
set(sources {others} src/{ENTRY})
set(kernels
{kernels})
string(TOLOWER "${{CMAKE_SYSTEM_PROCESSOR}}" processor)
include(CheckCSourceCompiles)
{chr(10).join(choices)}
else()
  set(variants base)
endif()
set(names -include ${{CMAKE_CURRENT_SOURCE_DIR}}/src/{KERNEL_NAMES} -fvisibility=hidden)
if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release)
endif()

# Kernels are compiled once for each variant of the processor; loading the library chooses among them.
foreach(variant IN LISTS variants)
  add_library({target}_${{variant}} OBJECT ${{kernels}})
  target_compile_definitions({target}_${{variant}} PRIVATE CSR_VARIANT=${{variant}})
  target_compile_options({target}_${{variant}} PRIVATE ${{names}} ${{flags_${{variant}}}})
  set_target_properties({target}_${{variant}} PROPERTIES C_STANDARD 99 POSITION_INDEPENDENT_CODE ON)
  list(APPEND objects $<TARGET_OBJECTS:{target}_${{variant}}>)
endforeach()
add_library({target} ${{sources}} ${{objects}})
set_source_files_properties({others} PROPERTIES COMPILE_DEFINITIONS CSR_CALLS)
set_source_files_properties(src/{ENTRY} PROPERTIES COMPILE_DEFINITIONS "CSR_TABLES;${{macros}}")
target_compile_options({target} PRIVATE ${{names}} ${{flags_base}})
target_include_directories({target} PUBLIC src)
set_target_properties({target} PROPERTIES C_STANDARD 99 POSITION_INDEPENDENT_CODE ON)
set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)
target_link_libraries({target} PUBLIC Threads::Threads)

if(CMAKE_CURRENT_SOURCE_DIR STREQUAL CMAKE_SOURCE_DIR AND NOT CMAKE_CROSSCOMPILING)
  add_executable({target}_example examples/classify/main.c)
  target_link_libraries({target}_example PRIVATE {target})
endif()
"""


def _cmake_variant(variant: Variant, macro: str) -> list[str]:
    """Adds a variant to the lists, where the compiler and its assembler know it."""
    added = [f"  list(APPEND variants {variant.name})"]
    if variant.check:
        added.append(f"  list(APPEND macros {macro})")
    if not variant.probe:
        return added
    program = f"{probe_source(variant).strip()} int main(void) {{ return 0; }}"
    return [
        f'  set(CMAKE_REQUIRED_FLAGS "{" ".join(variant.flags)}")',
        f"  check_c_source_compiles([[{program}]] knows_{variant.name})",
        "  unset(CMAKE_REQUIRED_FLAGS)",
        f"  if(knows_{variant.name})",
        *(f"  {line}" for line in added),
        "  endif()",
    ]
