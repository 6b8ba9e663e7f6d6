# The headers give the compiler at hand nothing to warn of. tests/embedding/test_compilers.py goes over other compilers.

if(WIN32)
  return()
endif()

set(radam_strict -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror)
set(radam_include ${PROJECT_SOURCE_DIR}/cpp/include)
file(GLOB_RECURSE radam_standalone CONFIGURE_DEPENDS ${radam_include}/radam/*.hpp)
list(FILTER radam_standalone EXCLUDE REGEX "/radam/torch")  # these need LibTorch

foreach(standard 17 20)
  add_test(NAME headers_alone_cxx${standard}
           COMMAND ${CMAKE_COMMAND} -DCOMPILER=${CMAKE_CXX_COMPILER} "-DFLAGS=-std=c++${standard};${radam_strict}"
                   "-DHEADERS=${radam_standalone}" -P ${CMAKE_CURRENT_SOURCE_DIR}/each_header.cmake)
  # -fsyntax-only makes all that templates need, too.
  add_test(NAME every_template_cxx${standard}
           COMMAND ${CMAKE_CXX_COMPILER} -std=c++${standard} ${radam_strict} -fsyntax-only -I${radam_include}
                   ${CMAKE_CURRENT_SOURCE_DIR}/every_template.cpp)
endforeach()
add_test(NAME every_template_without_exceptions
         COMMAND ${CMAKE_CXX_COMPILER} -std=c++17 ${radam_strict} -fno-exceptions -fno-rtti -fsyntax-only
                 -I${radam_include} ${CMAKE_CURRENT_SOURCE_DIR}/every_template.cpp)
if(TARGET radam_xsimd)
  get_target_property(radam_xsimd_headers radam_xsimd INTERFACE_INCLUDE_DIRECTORIES)
  set(radam_march "")
  if(RADAM_MARCH_NATIVE)
    set(radam_march -march=native)
  endif()
  add_test(NAME every_template_with_xsimd
           COMMAND ${CMAKE_CXX_COMPILER} -std=c++17 ${radam_strict} -DRADAM_WITH_XSIMD=1 -isystem ${radam_xsimd_headers}
                   ${radam_march} -fsyntax-only -I${radam_include}
                   ${CMAKE_CURRENT_SOURCE_DIR}/every_template.cpp)
endif()
