from zdist.cli import main

main()
