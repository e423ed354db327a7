# Builds csrc/cuda into the target vr_kernels_cuda. Where there is no CUDA compiler there is no such target.

# What is called nvcc may be a wrapper script, and CMake expects the toolkit's headers and libraries beside the compiler
# it is given. The dry run of any nvcc tells where the real one lies: "#$ _HERE_=/usr/local/cuda/bin".
if(DEFINED ENV{CUDACXX})
  set(nvcc $ENV{CUDACXX})
else()
  find_program(nvcc nvcc NO_CACHE HINTS ENV CUDA_HOME ENV CUDA_PATH PATH_SUFFIXES bin NO_CMAKE_SYSTEM_PATH)
endif()
if(nvcc)
  execute_process(COMMAND ${nvcc} -v --dryrun nothing OUTPUT_VARIABLE dry_run ERROR_VARIABLE dry_run)
  if(dry_run MATCHES "_HERE_=([^\n]+)")
    set(nvcc ${CMAKE_MATCH_1}/nvcc)
  endif()
  set(ENV{CUDACXX} ${nvcc})
  include(CheckLanguage)
  check_language(CUDA)
endif()

if(NOT CMAKE_CUDA_COMPILER)
  if(nvcc)
    set(reason "the CUDA compiler ${nvcc} does not work with this C++ compiler")
  else()
    set(reason "no CUDA compiler found")
  endif()
  if(VR_KERNELS_CUDA)
    message(FATAL_ERROR "vr_kernels: ${reason}, and VR_KERNELS_CUDA=${VR_KERNELS_CUDA} requires one")
  endif()
  message(STATUS "vr_kernels: ${reason}; building the CPU kernels only")
  return()
endif()

set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)

if(NOT VR_KERNELS_CUDA_ARCHITECTURES STREQUAL "")
  set(CMAKE_CUDA_ARCHITECTURES ${VR_KERNELS_CUDA_ARCHITECTURES})
elseif(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90)  # all of the default that this compiler knows
else()
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100-real 120)
endif()

# What the binary will hold, in nvcc's names: 80-real is machine code (sm_80), 80-virtual PTX (compute_80), 80 both.
set(code)
foreach(architecture ${CMAKE_CUDA_ARCHITECTURES})
  if(NOT architecture MATCHES "^([0-9]+[af]?)(-real|-virtual)?$")
    message(FATAL_ERROR "vr_kernels: VR_KERNELS_CUDA_ARCHITECTURES has ${architecture}, not one like 90 or 90-real")
  endif()
  if(NOT CMAKE_MATCH_2 STREQUAL "-virtual")
    list(APPEND code sm_${CMAKE_MATCH_1})
  endif()
  if(NOT CMAKE_MATCH_2 STREQUAL "-real")
    list(APPEND code compute_${CMAKE_MATCH_1})
  endif()
endforeach()
list(JOIN code ", " code)
message(STATUS "vr_kernels: building CUDA kernels for ${code}")

file(GLOB cuda_sources CONFIGURE_DEPENDS csrc/cuda/*.cu)
add_library(vr_kernels_cuda OBJECT ${cuda_sources})
target_include_directories(vr_kernels_cuda PUBLIC csrc)
target_compile_options(vr_kernels_cuda PRIVATE -Xcompiler=-Wall,-Wextra)
target_sources(_C PRIVATE csrc/bindings_cuda.cpp)
target_compile_definitions(vr_kernels_cuda PUBLIC
  VR_KERNELS_CUDA
  VR_KERNELS_CUDA_ARCHITECTURES="${code}"
  VR_KERNELS_CUDA_COMPILER="nvcc ${CMAKE_CUDA_COMPILER_VERSION}")
