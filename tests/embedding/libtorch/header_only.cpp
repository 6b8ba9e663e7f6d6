// The cases with loops that are compiled here.
#include "cases.hpp"

int main(int argc, char** argv) { return argc == 3 ? cases::run_all<radam::torch::RAdam>(argv[1], argv[2]) : 2; }
