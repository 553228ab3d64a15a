import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;

/** `hello PID` at the port given as the first argument. */
public class Main {
    public static void main(String[] args) throws Exception {
        HttpServer server = HttpServer.create(new InetSocketAddress(Integer.parseInt(args[0])), 0);
        byte[] body = ("hello " + ProcessHandle.current().pid() + "\n").getBytes();
        server.createContext("/", exchange -> {
            exchange.sendResponseHeaders(200, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        server.start();
    }
}
