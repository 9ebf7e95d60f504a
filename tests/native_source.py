"""A small stand-in for the sources of the native kernel, which compiles in a moment."""

from pathlib import Path

HEADER = """
struct Numbers { const float* values; int count; float sum; };
typedef int (*Sum)(Numbers*);
"""

KERNEL = """
#include "numbers.h"
#if defined(ISA_AVX512)
#define FUNCTION sum_avx512
#elif defined(ISA_AVX2)
#define FUNCTION sum_avx2
#elif defined(ISA_BASE)
#define FUNCTION sum_base
#endif
int FUNCTION(Numbers* n) {
  n->sum = 0;
  for (int i = 0; i < n->count; ++i) n->sum += n->values[i];
  return 0;
}
"""

DISPATCH = """
#include "numbers.h"
#define EXPORT extern "C" __attribute__((visibility("default")))
int sum_base(Numbers*);
static Sum chosen = sum_base;
static const char* name = "base";
#if defined(__x86_64__)
int sum_avx2(Numbers*);
int sum_avx512(Numbers*);
__attribute__((constructor)) static void choose() {
  if (__builtin_cpu_supports("avx512f")) { chosen = sum_avx512; name = "avx512"; }
  else if (__builtin_cpu_supports("avx2")) { chosen = sum_avx2; name = "avx2"; }
}
#endif
EXPORT int lambdanets_abi_version() { return 1; }
EXPORT const char* lambdanets_isa() { return name; }
EXPORT int numbers_sum(Numbers* n) { return chosen(n); }
"""


def write_source(folder: Path, **files: str) -> Path:
    """Write the stand-in's sources and return their folder.

    Args:
        folder: The folder, which is created.
        files: Text of further files, or other text of its own, by the name without suffix.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in ({"kernel": KERNEL, "dispatch": DISPATCH} | files).items():
        (folder / f"{name}.cpp").write_text(text)
    (folder / "numbers.h").write_text(HEADER)
    return folder
