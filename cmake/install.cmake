# What `cmake --install` and the wheel put in place. Nothing of it holds a path, so that a prefix may be moved.
#
#   include/radam/            the headers
#   lib/cmake/radam/          for find_package(radam): one file of targets for each component that is here
#   lib/pkgconfig/radam.pc    the headers alone

if(SKBUILD AND NOT DEFINED CMAKE_INSTALL_LIBDIR)
  set(CMAKE_INSTALL_LIBDIR lib CACHE PATH "")  # in a wheel it is never lib64
endif()
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(radam_package ${CMAKE_INSTALL_LIBDIR}/cmake/radam)

# Installs a target as the component of a name.
function(radam_install target component)
  install(TARGETS ${target} EXPORT radam_${component} ${ARGN} INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
  install(EXPORT radam_${component} FILE radam-${component}.cmake NAMESPACE radam:: DESTINATION ${radam_package})
endfunction()

set(radam_places RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
                 ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY cpp/include/radam DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.hpp" PATTERN "*.h")
radam_install(radam_headers headers)
if(TARGET radam_dispatch AND NOT RADAM_PYTHON)  # a third of the wheel, for few: they build it from the source
  radam_install(radam_dispatch dispatch ${radam_places})
endif()
if(TARGET radam_c)
  radam_install(radam_c c ${radam_places})
endif()
if(TARGET radam_cuda AND RADAM_PYTHON)  # the extension loads it from its own folder, at first use
  radam_install(radam_cuda cuda RUNTIME DESTINATION . LIBRARY DESTINATION . ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
elseif(TARGET radam_cuda)
  radam_install(radam_cuda cuda ${radam_places})
endif()

write_basic_package_version_file(radamConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES cmake/radamConfig.cmake cmake/xsimd.cmake ${CMAKE_CURRENT_BINARY_DIR}/radamConfigVersion.cmake
        DESTINATION ${radam_package})

# From the folder of radam.pc to the others; absolute ones stay.
file(RELATIVE_PATH radam_pc_prefix "${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig" "${CMAKE_INSTALL_PREFIX}")
string(REGEX REPLACE "/$" "" radam_pc_prefix "${radam_pc_prefix}")
set(radam_pc_includedir ${CMAKE_INSTALL_INCLUDEDIR})
if(NOT IS_ABSOLUTE ${radam_pc_includedir})
  string(PREPEND radam_pc_includedir "\${prefix}/")
endif()
set(radam_pc_cflags "")
if(NOT MSVC)
  set(radam_pc_cflags " -fno-math-errno -Wno-pass-failed")
endif()
configure_file(cmake/radam.pc.in radam.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/radam.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
